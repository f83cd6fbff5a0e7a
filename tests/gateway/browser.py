"""A headless Chromium, spoken to over a pipe by its own protocol (CDP): null-terminated JSON, no library."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PATIENCE_S = 60.0


class Browser:
    """One page of `width` pixels."""

    def __init__(self, folder: Path, width: int = 1400, height: int = 900, dark: bool = False) -> None:
        (theirs_in, self.to), (self.back, theirs_out) = os.pipe(), os.pipe()

        def wire() -> None:  # Chromium reads descriptor 3 and writes 4
            os.dup2(theirs_in, 13), os.dup2(theirs_out, 14), os.dup2(13, 3), os.dup2(14, 4)

        command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe",
                   f"--user-data-dir={folder}", "--no-first-run", "about:blank"]  # fmt: skip
        self.process = subprocess.Popen(
            command, preexec_fn=wire, pass_fds=(3, 4), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(theirs_in), os.close(theirs_out)
        self.buffer, self.serial, self.session = b"", 0, None
        self.events: list[dict[str, Any]] = []
        target = self.do("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.do("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.do("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        if dark:
            self.do("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.do(f"{domain}.enable")

    def do(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method; its result."""
        self.serial += 1
        asked = {"id": self.serial, "method": method, "params": params}
        asked |= {"sessionId": self.session} if self.session else {}
        os.write(self.to, json.dumps(asked).encode() + b"\0")
        while True:
            said = self._hear()
            if said.get("id") == self.serial:
                assert "error" not in said, said
                return dict(said["result"])
            self.events.append(said)

    def _hear(self) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            more = os.read(self.back, 1 << 20)
            assert more, "the browser has gone"
            self.buffer += more
        line, _, self.buffer = self.buffer.partition(b"\0")
        return dict(json.loads(line))

    def open(self, url: str) -> None:
        self.do("Page.navigate", url=url)

    def value(self, expression: str) -> Any:
        """What an expression is in the page."""
        said = self.do("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in said, said["exceptionDetails"]
        return said["result"].get("value")

    def until(self, expression: str, holds: Callable[[Any], bool] = bool) -> Any:
        """Wait until an expression's value is as wanted; that value."""
        end_s = time.monotonic() + PATIENCE_S
        while not holds(value := self.value(expression)):
            assert time.monotonic() < end_s, f"waited in vain for {expression}, last {value!r}; {self.complaints()}"
            time.sleep(0.05)
        return value

    def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            self.do("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def complaints(self) -> list[str]:
        """Exceptions of scripts, and whatever the console or a policy of the page objected to."""
        self.value("1")
        bad = [e for e in self.events if e.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded")]
        return [json.dumps(each["params"]) for each in bad]

    def picture(self, path: Path) -> None:
        """Write the whole page as a PNG."""
        image = self.do("Page.captureScreenshot", captureBeyondViewport=True, fromSurface=True)
        path.write_bytes(base64.b64decode(image["data"]))

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(PATIENCE_S)
        os.close(self.to), os.close(self.back)
