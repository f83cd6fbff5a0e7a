"""A server that does what a test tells it to, and a share of a workload driven against it, in one event loop."""

import asyncio
import json

from headway.bench import Job, Log, Target
from headway.bench.connection import event_loop
from headway.bench.driver import Driver
from headway.workload import WorkloadSpec, parse_arrival, parse_length, workload

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
USAGE = {"prompt_tokens": 7, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 3}}


def event(text=None, **more):
    choices = [] if text is None else [{"index": 0, "text": text, "finish_reason": None}]
    return b"data: " + json.dumps({"choices": choices, **more}).encode() + b"\n\n"


def delta(text):
    return b"data: " + json.dumps({"choices": [{"index": 0, "delta": {"content": text}}]}).encode() + b"\n\n"


def chunk(data):
    return b"%x\r\n%b\r\n" % (len(data), data)


DONE = b"data: [DONE]\n\n"
END = b"0\r\n\r\n"
PLAIN = HEAD + chunk(event(" a")) + chunk(event(" b")) + chunk(event(usage=USAGE) + DONE) + END


def failing(status, body=b'{"error": {"message": "no"}}'):
    return b"HTTP/1.1 %d x\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body)


def requests_of(*, n=10, rate=200.0, arrival="constant", prompt="16", output="2", **spec):
    made = WorkloadSpec(
        prompt=parse_length(prompt), output=parse_length(output), arrival=parse_arrival(arrival), **spec
    )
    return workload(made, requests=n, rate=None if arrival.startswith("closed") else rate)


class Server:
    """Answers each request by `script(server, number, body, writer)`; counts what is under way."""

    def __init__(self, script):
        self.script = script
        self.bodies, self.heads = [], []
        self.writers, self.tasks = [], []
        self.active = self.most = self.connections = 0
        self.start_s = 0.0  # the zero of the log's times, on the loop's clock

    async def serve(self, reader, writer):
        self.connections += 1
        self.tasks.append(asyncio.current_task())
        self.writers.append(writer)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                body = json.loads(await reader.readexactly(length))
                self.heads.append(head)
                self.bodies.append(body)
                self.active += 1
                self.most = max(self.most, self.active)
                try:
                    keep = await self.script(self, len(self.bodies) - 1, body, writer)
                finally:
                    self.active -= 1
                if keep is False:
                    break
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass
        finally:
            writer.close()


async def plain(server, number, body, writer):
    writer.write(PLAIN)


def drive(what, script=plain, *, stop_after_s=None, key=None, place=0, places=1, port=None, **target):
    """Return the log of a share of a workload, and the server it was sent to."""
    loop, server, log = event_loop(), Server(script), Log()

    async def run():
        listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
        at = port or listening.sockets[0].getsockname()[1]
        there = Target(url=f"http://127.0.0.1:{at}", **target)
        driver = Driver(Job(there, key, what, 0, 1, place, places), log, 0.0)
        await driver.connections.open_ahead()
        driver.start_s = loop.time() + 0.02
        server.start_s = driver.start_s
        driver.go()
        if stop_after_s is not None:
            loop.call_later(stop_after_s, driver.stop)
        await asyncio.wait_for(driver.finished.wait(), 30.0)
        driver.close()
        await asyncio.sleep(0.02)  # whoever was just accepted finds that the client is gone
        listening.close()
        for writer in server.writers:
            writer.transport.abort()
        for task in server.tasks:
            task.cancel()
        await asyncio.sleep(0.01)

    try:
        loop.run_until_complete(run())
    finally:
        loop.close()
    return Log.joined([log.frozen()]), server
