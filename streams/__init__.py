"""The stream, from `posts` to `emotions`.

The map of the house, who calls whom:

    cli ──▶ options, settings            the command line; the only reader of the environment
     ├────▶ demo ──▶ demo_play, stack    embedded broker and Redis for a laptop, a demonstration on them
     └────▶ worker ──▶ app               one stream worker: wires everything below, runs it, ends it
                        │ Faust events
                        ▼
            records, batcher ──▶ pipeline ──▶ gpu_worker ══ child process ══▶ gpu_process ──▶ model
                                 │  │  └──▶ connectors: emotions, Redis, dead letters
                                 │  └─────▶ translate: outcomes to answers
                                 └────────▶ offsets: acknowledged in order, once outputs are safe

Beside them stand metrics and probes, what Prometheus and Kubernetes ask, and testing, stand-ins for tests.
"""
