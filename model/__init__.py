"""The model: text in, calibrated emotion scores out. Knows no Kafka, no Redis, no Prometheus.

samples     the words that everything here speaks: labels, a score, what cannot be scored
normalise   social text -> the words an encoder was trained on
tokenise    text -> windows of token ids
encoder     a BERT or RoBERTa checkpoint by name or folder -> RobertaModel
network     encoder + mean pooling + dense head
checkpoint  the folder that holds a trained model: safetensors, tokenizer, config, card
scorer      a checkpoint at work: texts -> scores
datasets    readers of the public data sets
training    a recipe (TOML) -> a checkpoint
evaluation  a checkpoint and a data set -> figures
cli         `emostream train`, `evaluate` and `predict`
"""
