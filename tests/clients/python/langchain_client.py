# LangChain's sandbox, and the first form of Vercel's client, which takes the address
# of the server from nowhere but its own default.
import asyncio
import os

from langchain_vercel_sandbox import VercelSandbox
from vercel._internal.sandbox import core

for client in (core.SyncSandboxOpsClient, core.AsyncSandboxOpsClient):
    client.__init__.__kwdefaults__["host"] = os.environ["DORMOUSE_SERVER"] + "/api"

from vercel.sandbox import AsyncSandbox, Sandbox

credentials = {
    "token": os.environ["DORMOUSE_KEY"],
    "team_id": os.environ["DORMOUSE_TEAM"],
    "project_id": "langchain",
}

with Sandbox.create(**credentials, ports=[3000]) as sandbox:
    backend = VercelSandbox(sandbox=sandbox, timeout=60)
    done = backend.execute("echo hello; exit 3")
    assert (done.exit_code, done.output.strip()) == (3, "hello"), done
    backend.upload_files([("/tmp/a", b"text")])
    found = backend.download_files(["/tmp/a", "/nope"])
    assert found[0].content == b"text" and found[1].error, found
    # A command that is killed when its time is over.
    late = VercelSandbox(sandbox=sandbox, timeout=1).execute("sleep 60")
    assert late.exit_code != 0, late


async def asynchronous():
    async with await AsyncSandbox.create(**credentials) as box:
        done = await box.run_command("sh", ["-c", "echo hello"])
        assert (done.exit_code, (await done.stdout()).strip()) == (0, "hello")
        await box.write_files([{"path": "a.txt", "content": b"x"}])
        assert await box.read_file("/vercel/sandbox/a.txt") == b"x"


asyncio.run(asynchronous())
print("done")
