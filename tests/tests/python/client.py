"""A small Roost client, written from docs/protocol.md: `websockets` and the standard library are all it uses.

    client.py REST_URL SESSIONS_URL
"""

import asyncio
import json
import sys
import urllib.error
import urllib.request
import uuid

import websockets

API, SESSIONS = sys.argv[1].rstrip("/"), sys.argv[2].rstrip("/").replace("http", "ws", 1)


def rest(method, path, body=None, token=None):
    request = urllib.request.Request(API + path, method=method)
    request.add_header("Content-Type", "application/json")
    if token:
        request.add_header("Authorization", "Bearer " + token)
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(request, data) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


class Client:
    """Shows every conversation in order and without holes, and repeats sends until there is a verdict."""

    def __init__(self, account):
        self.account = account
        self.shown = {}  # conversation -> up to which seq
        self.texts = {}  # conversation -> what was shown, in order
        self.held = {}  # conversation -> {seq: message} beyond a gap
        self.waiting = {}  # client_msg_id -> send, in order
        self.verdicts = {}  # client_msg_id -> the frame that decided
        self.cursor = None
        self.requests = 0

    async def connect(self):
        self.socket = await websockets.connect(SESSIONS + "/v1/connect", subprotocols=["roost.v1.json"])
        assert self.socket.subprotocol == "roost.v1.json"
        await self.say("connect", token=self.account["access_token"], client="python 1.0")
        connected = json.loads(await self.socket.recv())
        assert connected["type"] == "connected", connected
        assert connected["user_id"] == self.account["user_id"]
        self.limits, self.epoch = connected["limits"], connected["epoch"]
        await self.sync()
        for send in self.waiting.values():
            await self.socket.send(json.dumps(send))
        self.reader = asyncio.create_task(self.read())

    async def close(self):
        self.reader.cancel()
        await self.socket.close()

    async def say(self, kind, **fields):
        self.requests += 1
        await self.socket.send(json.dumps({"type": kind, "id": self.requests, **fields}))

    async def sync(self):
        await (self.say("sync", since=self.cursor) if self.cursor else self.say("sync"))

    async def send(self, conversation, text):
        name = str(uuid.uuid4())
        frame = {"type": "send", "client_msg_id": name, "conversation_id": conversation, "text": text}
        self.waiting[name] = frame
        await self.socket.send(json.dumps(frame))
        return name

    async def read(self):
        async for text in self.socket:
            await self.take(json.loads(text))

    async def take(self, frame):
        kind = frame["type"]
        if kind in ("sent", "rejected"):
            self.waiting.pop(frame["client_msg_id"], None)
            self.verdicts[frame["client_msg_id"]] = frame
        elif kind == "retry":
            asyncio.create_task(self.again(frame["client_msg_id"], frame["retry_after_ms"]))
        elif kind == "message":
            await self.message(frame)
        elif kind == "heads":
            for head in frame["conversations"]:
                conversation = head["conversation_id"]
                if "first_seq" in head:
                    self.shown.setdefault(conversation, head["first_seq"] - 1)
                if conversation not in self.shown:
                    await self.sync()
                elif head["last_seq"] > self.shown[conversation]:
                    await self.repair(conversation)
            if "next" in frame:
                self.cursor = frame["next"]
                if frame["more"]:
                    await self.sync()
        elif kind == "page":
            conversation = frame["conversation_id"]
            if frame["from"] <= self.shown[conversation] + 1 and frame["from"] <= frame["to"]:
                for message in frame["messages"]:
                    if message["seq"] > self.shown[conversation]:
                        self.show(message)
                self.shown[conversation] = max(self.shown[conversation], frame["to"])
                self.release(conversation)
                if frame["more"]:
                    await self.repair(conversation)
        elif kind == "ping":
            await self.socket.send(json.dumps({"type": "pong"}))
        else:
            raise AssertionError(f"not expected: {frame}")

    async def again(self, name, wait_ms):
        await asyncio.sleep(wait_ms / 1000)
        conversation = self.waiting.get(name, {}).get("conversation_id")
        for send in list(self.waiting.values()):
            if send["conversation_id"] == conversation:
                await self.socket.send(json.dumps(send))

    async def message(self, message):
        conversation, seq = message["conversation_id"], message["seq"]
        if message["sender_id"] == self.account["user_id"] and self.waiting.pop(message["client_msg_id"], None):
            self.verdicts[message["client_msg_id"]] = {**message, "type": "sent"}
        if conversation not in self.shown:
            self.held.setdefault(conversation, {})[seq] = message
            await self.sync()
        elif seq > self.shown[conversation]:
            self.held.setdefault(conversation, {})[seq] = message
            self.release(conversation)
            if self.held[conversation]:
                await self.repair(conversation)

    async def repair(self, conversation):
        await self.say("history", conversation_id=conversation, after=self.shown[conversation], limit=50)

    def release(self, conversation):
        held = self.held.setdefault(conversation, {})
        while message := held.pop(self.shown[conversation] + 1, None):
            self.show(message)
        for seq in [seq for seq in held if seq <= self.shown[conversation]]:
            del held[seq]

    def show(self, message):
        assert message["seq"] == self.shown[message["conversation_id"]] + 1, message
        self.shown[message["conversation_id"]] = message["seq"]
        if "event" not in message:
            self.texts.setdefault(message["conversation_id"], []).append(message["text"])


async def until(what, holds):
    for _ in range(1200):
        if holds():
            return
        await asyncio.sleep(0.05)
    raise AssertionError("never came true: " + what)


def page_through(token, conversation):
    texts, after, pages = [], 0, 0
    while True:
        path = f"/v1/messages?conversation_id={conversation}&after={after}&limit=60"
        status, page = rest("GET", path, token=token)
        assert status == 200, page
        texts += [message["text"] for message in page["messages"] if "event" not in message]
        pages += 1
        if not page["more"]:
            return texts, pages
        after = page["to"]


async def main():
    accounts = []
    for name in ("anna", "ben"):
        body = {"name": f"{name}-{uuid.uuid4().hex[:8]}", "password": "correct horse battery"}
        status, account = rest("POST", "/v1/accounts", body)
        assert status == 201, account
        assert rest("POST", "/v1/sessions", body)[0] == 200
        found = rest("GET", "/v1/users?name=" + body["name"], token=account["access_token"])
        assert found == (200, {"user_id": account["user_id"], "name": body["name"]}), found
        accounts.append(account)
    anna, ben = (Client(account) for account in accounts)
    body = {"client_msg_id": str(uuid.uuid4()), "kind": "direct", "members": [ben.account["user_id"]]}
    status, created = rest("POST", "/v1/conversations", body, anna.account["access_token"])
    assert status == 201 and created["seq"] == 1, created
    conversation = created["conversation_id"]

    await anna.connect()
    await ben.connect()
    for number in range(100):
        await anna.send(conversation, f"anna {number}")
        await ben.send(conversation, f"ben {number} äöü 🐦")
    await until("all sends are answered", lambda: not anna.waiting and not ben.waiting)
    assert {frame["type"] for frame in anna.verdicts.values()} == {"sent"}
    await until("both have all", lambda: all(one.shown.get(conversation) == 201 for one in (anna, ben)))
    assert anna.texts == ben.texts
    own = [text for text in anna.texts[conversation] if text.startswith("anna")]
    assert own == [f"anna {number}" for number in range(100)], "the order of the sends"

    # Away and back: what was missed comes by sync and history, from where it was.
    await ben.close()
    for number in range(120):
        await anna.send(conversation, f"ben is away {number}")
    await until("all sends are answered", lambda: not anna.waiting)
    await ben.connect()
    await until("Ben has what he missed", lambda: ben.shown[conversation] == 321)
    assert anna.texts[conversation][:200] == ben.texts[conversation][:200] and len(ben.texts[conversation]) == 320

    # The same id again is the same message; by REST too, and with another body it is refused.
    name = await anna.send(conversation, "once")
    await until("it is sent", lambda: name in anna.verdicts)
    seq = anna.verdicts[name]["seq"]
    body = {"client_msg_id": name, "conversation_id": conversation, "text": "once"}
    status, again = rest("POST", "/v1/messages", body, anna.account["access_token"])
    assert (status, again["seq"]) == (201, seq), again
    status, problem = rest("POST", "/v1/messages", {**body, "text": "twice"}, anna.account["access_token"])
    assert problem["code"] == "idempotency_mismatch", (status, problem)

    # A conversation that is not there.
    name = await anna.send(str(uuid.uuid4()), "is anybody there?")
    await until("it is rejected", lambda: name in anna.verdicts)
    assert anna.verdicts[name]["type"] == "rejected" and anna.verdicts[name]["code"] == "not_found"

    await until("Ben has it all", lambda: ben.shown[conversation] == 322)
    texts, pages = page_through(ben.account["access_token"], conversation)
    assert texts == ben.texts[conversation] and pages == 6, (len(texts), pages)
    status, listed = rest("GET", "/v1/conversations", token=ben.account["access_token"])
    assert [entry["last_seq"] for entry in listed["conversations"]] == [322], listed

    status, renewed = rest("POST", "/v1/tokens", {"refresh_token": ben.account["refresh_token"]})
    assert status == 200 and renewed["device_id"] == ben.account["device_id"], renewed
    await ben.say("refresh", token=renewed["access_token"])
    name = await ben.send(conversation, "still here")
    await until("it is sent after the refresh", lambda: name in ben.verdicts)
    await anna.close()
    await ben.close()
    print("all is well")


asyncio.run(main())
