// Sessions that speak JSON (`roost.v1.json`):  k6 run -e URL=http://127.0.0.1:8080 loadtest/k6/json.js

import { session } from './session.js';
import { options as shared, own, prepare } from './users.js';

export const options = shared;

const form = {
  subprotocol: 'roost.v1.json',
  newId: () => crypto.randomUUID(),
  encode: (frame) => JSON.stringify(frame),
  decode: (data) => JSON.parse(data),
};

export function setup() {
  return prepare();
}

export default function (users) {
  session(form, own(users));
}
