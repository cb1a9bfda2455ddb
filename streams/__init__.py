"""The stream, from `posts` to `emotions`.

The map of the house, who calls whom:

cli ──▶ settings                      the command line; the only reader of the environment
├────▶ demo ──▶ stack                embedded broker and Redis for a laptop, a demonstration on them
└────▶ worker ──▶ app                one stream worker: wires everything below, runs it, ends it
│ Faust events
▼
intake (decode, batcher) ──▶ pipeline ──▶ gpu_worker ══ child process ══▶ gpu_process ──▶ model
▲                  │  └─────▶ connectors: emotions, Redis, dead letters
└── offsets ◀──────┘          acknowledged in order, once outputs are safe
metrics, probes                           what Prometheus and Kubernetes ask
"""
