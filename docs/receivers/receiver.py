"""Takes the webhooks of pzbridge: verifies the signature, stores each event once as a file in a
folder, and answers where a call should go.

    WEBHOOK_SECRET=whsec_… INBOX=inbox PORT=9000 python3 receiver.py
"""
import base64, hashlib, hmac, json, os, tempfile, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SECRET, INBOX = os.environ["WEBHOOK_SECRET"], os.environ["INBOX"]
MANAGERS = {"+73430112233": "101"}  # the extension that gets a client's call


def verify(secret: str, headers, body: bytes) -> bool:
    sent = headers.get("webhook-timestamp", "")
    if not sent.isdigit() or abs(time.time() - int(sent)) > 300:
        return False
    key = base64.b64decode(secret[len("whsec_"):])
    signed = f"{headers.get('webhook-id', '')}.{sent}.".encode() + body
    want = "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    return any(hmac.compare_digest(want, got) for got in headers.get("webhook-signature", "").split())


def store(event_id: str, body: bytes) -> None:
    with tempfile.NamedTemporaryFile(dir=INBOX, prefix=".part-") as part:
        part.write(body)
        part.flush()
        os.fsync(part.fileno())
        try:  # it gets its name when it is whole
            os.link(part.name, os.path.join(INBOX, os.path.basename(event_id) + ".json"))
        except FileExistsError:
            pass  # one that is there already has come before


class Receiver(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if not verify(SECRET, self.headers, body):
            return self.answer(401)
        event = json.loads(body)
        if event["type"] == "call.transfer_requested":  # a person waits: answer at once
            to = MANAGERS.get(event["data"].get("client_number"), "")  # an empty one declines
            return self.answer(200, {"transfer_to": to})
        try:
            store(event["id"], body)  # something else does the work with these files
        except OSError as e:
            self.log_error("%s", e)
            return self.answer(500)  # it comes again
        self.answer(204)

    def answer(self, status, content=None):
        body = json.dumps(content).encode() if content else b""
        self.send_response(status)
        if content:
            self.send_header("Content-Type", "application/json")
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


os.makedirs(INBOX, mode=0o700, exist_ok=True)
ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Receiver).serve_forever()
