"""What Prometheus and Kubernetes ask: `/metrics`, `/healthz`, `/readyz`. Started by the app.

It runs on the worker's own event loop: a loop that hangs does not answer, which is what `/healthz` is for.
"""

from collections.abc import Callable, Sequence

import msgspec
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest


class Check(msgspec.Struct, frozen=True):
    """One condition of readiness."""

    name: str
    met: bool
    detail: str


class ProbeServer:
    """Serves metrics and probes over HTTP.

    Args:
        registry: What `/metrics` shows.
        checks: Asked at each `/readyz`; all must be met.
    """

    def __init__(self, *, registry: CollectorRegistry, checks: Callable[[], Sequence[Check]]) -> None:
        self._registry = registry
        self._checks = checks
        self._runner: web.AppRunner | None = None

    async def start(self, *, host: str, port: int) -> int:
        """Listen, and return the port; 0 takes a free one.

        Raises:
            OSError: The port is taken.
        """
        app = web.Application()
        app.add_routes(
            [
                web.get("/metrics", self._metrics),
                web.get("/healthz", self._healthz),
                web.get("/readyz", self._readyz),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port).start()
        return int(self._runner.addresses[0][1])

    async def stop(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _metrics(self, _request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _healthz(self, _request: web.Request) -> web.Response:
        return web.Response(text="alive\n")

    async def _readyz(self, _request: web.Request) -> web.Response:
        checks = self._checks()
        ready = all(check.met for check in checks)
        lines = (f"[{'ok' if check.met else '--'}] {check.name}: {check.detail}\n" for check in checks)
        return web.Response(status=200 if ready else 503, text="".join(lines))
