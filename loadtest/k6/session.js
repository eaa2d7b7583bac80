// One session, whatever its form: it connects, writes to its pair at a steady rate, and counts what comes back.
//
// A message counts from the moment it was due. `form` knows how frames are written: see json.js and binary.js.

import { WebSocket } from 'k6/websockets';
import { setInterval, clearInterval, setTimeout } from 'k6/timers';
import { check } from 'k6';
import { Counter, Trend } from 'k6/metrics';
import { PER_SECOND, SECONDS, SOCKET } from './users.js';

const sentMs = new Trend('roost_sent_ms', true);
const receivedMs = new Trend('roost_received_ms', true);
const pongMs = new Trend('roost_pong_ms', true);
const connectedMs = new Trend('roost_connected_ms', true);
const messages = new Counter('roost_messages');
const duplicates = new Counter('roost_duplicates');
const unanswered = new Counter('roost_unanswered');
const missing = new Counter('roost_missing');

// How long the last answers may take.
const SETTLE_MS = 10000;

export function session(form, user) {
  const begun = Date.now();
  const socket = new WebSocket(SOCKET, form.subprotocol);
  socket.binaryType = 'arraybuffer';
  const waiting = new Map();
  const seqs = new Set();
  let sent = 0;
  // Every number up to here is here.
  let shown = null;
  let asking = false;
  let pinged = 0;
  let sending = null;
  let connected = false;

  const send = (frame) => socket.send(form.encode(frame));
  const attempt = (id) => {
    const text = `${waiting.get(id)}`;
    send({ type: 'send', client_msg_id: id, conversation_id: user.direct, text });
  };

  socket.onopen = () => send({ type: 'connect', token: user.token, client: 'k6' });

  const start = () => {
    const first = Date.now();
    let number = 0;
    sending = setInterval(() => {
      // All that is due by now, should the timer have been late.
      for (; first + (number * 1000) / PER_SECOND <= Date.now(); number += 1) {
        const id = form.newId();
        waiting.set(id, first + (number * 1000) / PER_SECOND);
        sent += 1;
        attempt(id);
      }
    }, 1000 / PER_SECOND);
    const pinging = setInterval(() => {
      pinged = Date.now();
      send({ type: 'ping' });
    }, 5000);
    setTimeout(() => {
      clearInterval(sending);
      clearInterval(pinging);
      settle(Date.now() + SETTLE_MS);
    }, SECONDS * 1000);
  };

  // Ends once every send is answered and everything of both is here: the pair's other one writes as many.
  const settle = (until) => {
    const absent = Math.max(0, 2 * sent - seqs.size);
    if ((waiting.size > 0 || absent > 0) && Date.now() < until) {
      setTimeout(() => settle(until), 100);
      return;
    }
    unanswered.add(waiting.size);
    missing.add(absent);
    socket.close(1000);
  };

  const answered = (id) => {
    if (waiting.has(id)) {
      sentMs.add(Date.now() - waiting.get(id));
      waiting.delete(id);
    }
  };

  // What is told of and not here is asked for.
  const repair = (known) => {
    while (seqs.has(shown + 1)) shown += 1;
    if (known > shown && !asking) {
      asking = true;
      send({ type: 'history', conversation_id: user.direct, after: shown });
    }
  };

  const handlers = {
    connected: () => {
      connected = true;
      connectedMs.add(Date.now() - begun);
      send({ type: 'sync' });
    },
    heads: (frame) => {
      const head = frame.conversations.find((one) => one.conversation_id === user.direct);
      if (shown !== null) {
        if (head) repair(head.last_seq);
      } else if (head || !frame.more) {
        // What was written before this run is not shown.
        shown = head ? head.last_seq : 0;
        start();
      } else {
        send({ type: 'sync', since: frame.next });
      }
    },
    page: (frame) => {
      asking = false;
      frame.messages.forEach(handlers.message);
      shown = Math.max(shown, frame.to);
      if (frame.more) repair(frame.to + 1);
    },
    sent: (frame) => answered(frame.client_msg_id),
    rejected: (frame) => {
      check(frame, { 'no send is rejected': () => false });
      waiting.delete(frame.client_msg_id);
    },
    retry: (frame) => {
      // In order, from the first one without an answer.
      setTimeout(() => waiting.forEach((_, id) => attempt(id)), frame.retry_after_ms);
    },
    message: (frame) => {
      // An event takes a number, but nobody wrote it.
      if (frame.conversation_id !== user.direct || frame.event || frame.seq <= shown) return;
      if (seqs.has(frame.seq)) {
        duplicates.add(1);
        return;
      }
      seqs.add(frame.seq);
      if (!asking) repair(frame.seq);
      messages.add(1);
      if (frame.sender_id === user.user_id) answered(frame.client_msg_id);
      else if (Number(frame.text) > 0) receivedMs.add(Date.now() - Number(frame.text));
    },
    ping: () => send({ type: 'pong' }),
    pong: () => pongMs.add(Date.now() - pinged),
    error: (frame) => check(frame, { 'no request fails': () => false }),
  };

  socket.onmessage = (event) => {
    const frame = form.decode(event.data);
    if (frame && handlers[frame.type]) handlers[frame.type](frame);
  };
  socket.onclose = () => {
    if (sending !== null) clearInterval(sending);
    check(connected, { 'the session was connected': (value) => value });
  };
  socket.onerror = (event) => {
    // A close that we asked for is no failure.
    if (event.error !== 'websocket: close sent') {
      check(event, { 'the connection holds': () => false });
    }
  };
}
