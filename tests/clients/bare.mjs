// A program that knows nothing of us: run by node, bun and deno with what
// `dormouse env` exports, it prints what it got.
import https from "node:https";
import { Sandbox } from "@vercel/sandbox";

const sandbox = await Sandbox.create({ ports: [3000] });
try {
  const server = `
    const server = require("http").createServer((request, response) => response.end("served " + request.url));
    server.on("upgrade", (request, socket) => {
      const accept = require("crypto").createHash("sha1")
        .update(request.headers["sec-websocket-key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest("base64");
      socket.write("HTTP/1.1 101 Switching Protocols\\r\\nUpgrade: websocket\\r\\nConnection: Upgrade\\r\\nSec-WebSocket-Accept: " + accept + "\\r\\n\\r\\n");
      socket.write(Buffer.from([0x81, 5, ...Buffer.from("hello")]));
    });
    server.listen(3000, () => require("fs").writeFileSync("/tmp/ready", ""))`;
  await sandbox.runCommand({ cmd: "node", args: ["-e", server], detached: true });
  await sandbox.runCommand("bash", ["-c", "until [ -e /tmp/ready ]; do sleep 0.05; done"]);
  const url = sandbox.domain(3000);
  console.log(new URL(url).hostname.endsWith(".vercel.run"));
  console.log(await (await fetch(`${url}/fetch?a=b`)).text());
  console.log(await new Promise((resolve, reject) => https.get(`${url}/https`, (response) => {
    let text = "";
    response.on("data", (part) => { text += part; }).on("end", () => resolve(text));
  }).on("error", reject)));
  // Node has it since version 22.
  if (globalThis.WebSocket) console.log(await new Promise((resolve, reject) => {
    const socket = new WebSocket(url.replace("https:", "wss:"));
    socket.onmessage = ({ data }) => { socket.close(); resolve(data); };
    socket.onerror = () => reject(new Error("the WebSocket fails"));
  }));
  // Its undici is for version 20 and later.
  if (!process.versions.bun && !process.versions.deno && Number.parseInt(process.versions.node) >= 20) {
    const undici = await import("undici");
    console.log(await (await undici.request(`${url}/undici`)).body.text());
    const { WebSocket: Ws } = await import("ws");
    console.log(await new Promise((resolve, reject) => {
      const socket = new Ws(url.replace("https:", "wss:"));
      socket.on("message", (data) => { socket.close(); resolve(`ws ${data}`); }).on("error", reject);
    }));
  }
} finally {
  await sandbox.delete();
}
