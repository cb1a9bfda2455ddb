"""The edges: what comes in from outside and where answers go. Imports no torch and nothing of `streams`.

messages     every wire format: topics, structs, decode and encode
schemas      JSON Schema files of those formats, generated from the code
topics       which topics exist; creating what is missing
broker       where Kafka is and how to get in: addresses, TLS, SASL
connecting   reaching it, and what is said when it does not answer or does not let us in
producer     kafka-python producer that sources publish through
jsonl        `emostream ingest jsonl`: a file or standard input -> posts
clips        `emostream ingest clips`: a folder -> clips, and the posts beside them
recordings   what is in that folder; ledger: what of it was published and confirmed
transcode    a recording -> one that fits into a record; ffmpeg: opening what strangers recorded
reader       answers and dead letters, read back (`emostream watch`)
dead_letters what a dead letter says; replaying: sending its record once more (`emostream dlq`)
redis_access where Redis is and how to get in
sinks        where answers go: one protocol, Kafka (kafka_sink) and Redis (redis_sink)
"""
