// Takes the webhooks of pzbridge: verifies the signature, stores each event once as a file in a
// folder, and answers where a call should go.
//
//   WEBHOOK_SECRET=whsec_… INBOX=inbox PORT=9000 node receiver.js

const crypto = require("node:crypto");
const fs = require("node:fs");
const http = require("node:http");
const path = require("node:path");

const { WEBHOOK_SECRET, INBOX, PORT } = process.env;
fs.mkdirSync(INBOX, { recursive: true, mode: 0o700 });

function verify(secret, headers, body) { // body: a Buffer
  const id = headers["webhook-id"], sent = headers["webhook-timestamp"];
  if (!(Math.abs(Date.now() / 1000 - Number(sent)) <= 300)) return false;
  const key = Buffer.from(secret.slice("whsec_".length), "base64");
  const want = Buffer.from("v1," + crypto.createHmac("sha256", key).update(`${id}.${sent}.`).update(body).digest("base64"));
  return (headers["webhook-signature"] || "").split(" ").some((s) => {
    const got = Buffer.from(s);
    return got.length === want.length && crypto.timingSafeEqual(got, want);
  });
}

// The extension that gets a client's call; an empty one declines.
const manager = (client) => ({ "+73430112233": "101" })[client] ?? "";

function store(id, body) {
  const file = path.join(INBOX, path.basename(id) + ".json");
  const part = path.join(INBOX, `.part-${process.pid}-${crypto.randomUUID()}`);
  fs.writeFileSync(part, body, { flush: true });
  try {
    fs.linkSync(part, file); // it gets its name when it is whole
  } catch (e) {
    if (e.code !== "EEXIST") throw e; // one that is there already has come before
  } finally {
    fs.unlinkSync(part);
  }
}

http.createServer((request, response) => {
  const parts = [];
  request.on("data", (part) => parts.push(part)).on("end", () => {
    const body = Buffer.concat(parts);
    if (!verify(WEBHOOK_SECRET, request.headers, body)) return response.writeHead(401).end();
    const event = JSON.parse(body);
    if (event.type === "call.transfer_requested") { // a person waits: answer at once
      response.writeHead(200, { "Content-Type": "application/json" });
      return response.end(JSON.stringify({ transfer_to: manager(event.data.client_number) }));
    }
    try {
      store(event.id, body); // something else does the work with these files
    } catch (e) {
      console.error(e);
      return response.writeHead(500).end(); // it comes again
    }
    response.writeHead(204).end();
  });
}).listen(PORT, "127.0.0.1");
