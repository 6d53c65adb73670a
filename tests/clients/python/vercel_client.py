# Vercel's client for Python by its `base_url`, synchronous and not, and bare.
import asyncio
import os

from vercel.api import session
from vercel.sandbox import SandboxClient, SandboxCredentials, SandboxServiceOptions, sync

server = os.environ["DORMOUSE_SERVER"] + "/api"


def credentials():
    return SandboxCredentials(
        token=os.environ["DORMOUSE_KEY"], team_id=os.environ["DORMOUSE_TEAM"], project_id="python"
    )


async def later():
    return credentials()


async def asynchronous():
    client = SandboxClient.create(
        options=SandboxServiceOptions(base_url=server, credentials_factory=later)
    )
    try:
        async with client.create_sandbox(ports=[3000]) as box:
            done = await box.run_process("sh", ["-c", "echo hello"], capture_output=True, check=True)
            assert (done.returncode, done.stdout) in [(0, "hello\n"), (0, b"hello\n")], done
            assert [route.port for route in box.routes] == [3000]
            await box.fs.write_text("/tmp/a", "wörd")
            assert await box.fs.read_text("/tmp/a") == "wörd"
            async with box.open_interactive("sh", ["-c", "echo from a terminal; exit 3"]) as terminal:
                text = b""
                try:
                    while True:
                        text += await terminal.stream.receive()
                except Exception:
                    pass
                assert b"from a terminal" in text, text
                assert await terminal.wait() == 3
    finally:
        await client.aclose()


def synchronous():
    options = sync.SandboxServiceOptions(base_url=server, credentials_factory=credentials)
    with session(service_options=[options]):
        with sync.create_sandbox(ports=[3000]) as box:
            done = box.run_process("sh", ["-c", "cat /etc/hostname; exit 4"], capture_output=True)
            assert done.returncode == 4, done
            box.fs.write_bytes("/tmp/a", b"\0\xff")
            assert box.fs.read_bytes("/tmp/a") == b"\0\xff"


asyncio.run(asynchronous())
synchronous()
print("done")
