"""`fastwm view`: serve the page of a run on this machine until it is interrupted."""

import socket
import webbrowser
from contextlib import suppress
from pathlib import Path

from fastwm.errors import FastwmError
from fastwm.extras import needs
from fastwm.view.app import make_app
from fastwm.view.data import Run

with needs("view", "fastwm view"):
    import uvicorn

HOST = "127.0.0.1"


def view(logdir: Path, port: int = 0, browser: bool = True, trust: bool = False) -> None:
    """Serve the page of the run in `logdir`, and open it in a browser.

    Args:
        logdir: folder of the run. It may come from a stranger: no code of it runs.
        port: 0 takes a free one.
        browser: open the page.
        trust: as in `fastwm.load`.

    Raises:
        FastwmError: for a folder that is none, or a port that is taken.
    """
    run = Run(logdir, trust)
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
        except OSError as error:
            raise FastwmError(f"cannot listen at port {port}: {error.strerror}; give another --port") from error
        listener.listen(64)  # the browser may come before the server has started
        port = listener.getsockname()[1]
        address = f"http://{HOST}:{port}/"
        print(f"{logdir}: {address}  (Ctrl-C ends it)", flush=True)
        if browser:
            webbrowser.open(address)
        server = uvicorn.Server(uvicorn.Config(
            make_app(run, port), log_level="warning", server_header=False,
            timeout_graceful_shutdown=5,  # a browser keeps connections open
        ))  # fmt: skip
        with suppress(KeyboardInterrupt):  # uvicorn raises it once more after its shutdown
            server.run(sockets=[listener])
