"""The stream, from `posts` and `clips` to `emotions`.

The map of the house, who calls whom:

    cli, ingest_cli, dlq_cli ──▶ options, settings   the command line; the only reader of the environment
     ├────▶ demo ──▶ demo_play, stack    embedded broker and Redis for a laptop, a demonstration on them
     └────▶ worker ──▶ app               one stream worker: wires everything below, runs it, ends it
                        │ Faust events
                        ▼
      records, join, batcher ──▶ pipeline ──▶ gpu_worker ══ child process ══▶ gpu_process ──▶ model
                                 │  │  └──▶ connectors: emotions, Redis, dead letters
                                 │  └─────▶ translate: outcomes to answers
                                 └────────▶ offsets: acknowledged in order, once outputs are safe

Beside them stand metrics and probes, what Prometheus and Kubernetes ask, frames, what the two processes say to each
other, control, what a sound model can always answer, show and dlq_show, how answers and dead letters look, stopping,
how commands heed signals, and testing, stand-ins for tests.
"""
