// Sessions that speak protobuf (`roost.v1`):  k6 run -e URL=http://127.0.0.1:8080 loadtest/k6/binary.js
//
// The few frames are written by hand, as docs/protocol.md and frames.proto have them: a second reading of the form that
// owes nothing to the server's own code.

import { session } from './session.js';
import { options as shared, own, prepare } from './users.js';

export const options = shared;

export function setup() {
  return prepare();
}

export default function (users) {
  session(form, own(users));
}

// The numbers of the fields in ClientFrame and ServerFrame.
const CLIENT = { connect: 2, send: 3, sync: 4, history: 5, ping: 7, pong: 8 };
const SERVER = {
  2: 'connected',
  3: 'sent',
  4: 'rejected',
  5: 'retry',
  6: 'message',
  7: 'heads',
  8: 'page',
  9: 'error',
  12: 'ping',
  13: 'pong',
};

const form = {
  subprotocol: 'roost.v1',
  newId: () => crypto.randomUUID(),
  encode(frame) {
    const body = bodies[frame.type](frame);
    return new Uint8Array(field(CLIENT[frame.type], body)).buffer;
  },
  decode(data) {
    for (const [number, value] of fields(new Uint8Array(data))) {
      const type = SERVER[number];
      if (type) return { type, ...(readers[type] ? readers[type](value) : {}) };
    }
    // Of a kind that is not ours to know.
    return null;
  },
};

const bodies = {
  connect: (frame) => [...field(1, utf8(frame.token)), ...field(3, utf8(frame.client))],
  send: (frame) => [
    ...field(1, uuidBytes(frame.client_msg_id)),
    ...field(2, uuidBytes(frame.conversation_id)),
    ...field(3, utf8('text/plain')),
    ...field(4, utf8(frame.text)),
  ],
  sync: (frame) => (frame.since ? field(1, utf8(frame.since)) : []),
  history: (frame) => [...field(1, uuidBytes(frame.conversation_id)), 2 * 8, ...varint(frame.after)],
  ping: () => [],
  pong: () => [],
};

const readers = {
  sent: (bytes) => ({ client_msg_id: uuid(bytes, 1), seq: whole(bytes, 3) }),
  rejected: (bytes) => ({ client_msg_id: uuid(bytes, 1) }),
  retry: (bytes) => ({ client_msg_id: uuid(bytes, 1), retry_after_ms: whole(bytes, 2) }),
  message,
  heads: (bytes) => ({
    conversations: all(bytes, 1).map((head) => ({ conversation_id: uuid(head, 1), last_seq: whole(head, 3) })),
    next: text(bytes, 2),
    more: whole(bytes, 3) === 1,
  }),
  page: (bytes) => ({ to: whole(bytes, 3), messages: all(bytes, 4).map(message), more: whole(bytes, 5) === 1 }),
};

function message(bytes) {
  return {
    conversation_id: uuid(bytes, 1),
    seq: whole(bytes, 2),
    sender_id: uuid(bytes, 3),
    client_msg_id: uuid(bytes, 5),
    text: text(bytes, 8),
    event: first(bytes, 9),
  };
}

// Writing: a field with its length before it.
function field(number, bytes) {
  return [...varint(number * 8 + 2), ...varint(bytes.length), ...bytes];
}

function varint(value) {
  const bytes = [];
  let rest = value;
  // No bit operations: they end at 32 bits.
  for (; rest >= 128; rest = Math.floor(rest / 128)) bytes.push((rest % 128) + 128);
  bytes.push(rest);
  return bytes;
}

// Tokens, names and decimal numbers are ASCII.
function utf8(text) {
  return Array.from(text, (letter) => letter.charCodeAt(0));
}

function uuidBytes(id) {
  return id.replace(/-/g, '').match(/../g).map((two) => parseInt(two, 16));
}

// Reading: [number, value] of each field; a value is a number or a run of bytes.
function* fields(bytes) {
  let at = 0;
  const number = () => {
    let value = 0;
    for (let scale = 1; ; scale *= 128) {
      const byte = bytes[at];
      at += 1;
      value += (byte % 128) * scale;
      if (byte < 128) return value;
    }
  };
  while (at < bytes.length) {
    const key = number();
    const kind = key % 8;
    if (kind === 0) {
      yield [Math.floor(key / 8), number()];
    } else if (kind === 2) {
      const length = number();
      yield [Math.floor(key / 8), bytes.subarray(at, at + length)];
      at += length;
    } else {
      throw new Error(`wire type ${kind} is none of ours`);
    }
  }
}

function first(bytes, wanted) {
  for (const [number, value] of fields(bytes)) if (number === wanted) return value;
  return undefined;
}

function all(bytes, wanted) {
  return Array.from(fields(bytes)).filter(([number]) => number === wanted).map(([, value]) => value);
}

function whole(bytes, number) {
  return first(bytes, number) || 0;
}

function uuid(bytes, number) {
  const digits = Array.from(first(bytes, number) || [], (byte) => byte.toString(16).padStart(2, '0')).join('');
  return digits.replace(/^(.{8})(.{4})(.{4})(.{4})/, '$1-$2-$3-$4-');
}

function text(bytes, number) {
  return String.fromCharCode(...(first(bytes, number) || []));
}
