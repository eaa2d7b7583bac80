// Who talks to whom: seeded users of `roost-swarm tokens`, or new accounts over REST.

import http from 'k6/http';
import exec from 'k6/execution';

export const BASE = __ENV.URL || 'http://127.0.0.1:8080';
export const SOCKET = `${BASE.replace(/^http/, 'ws')}/v1/connect`;
export const VUS = Number(__ENV.VUS || 20);
export const SECONDS = Number(__ENV.SECONDS || 20);
export const PER_SECOND = Number(__ENV.PER_SECOND || 2);

// One session for each virtual user, for the whole run.
export const options = {
  scenarios: {
    sessions: { executor: 'per-vu-iterations', vus: VUS, iterations: 1, maxDuration: `${SECONDS + 60}s` },
  },
  thresholds: {
    checks: ['rate==1'],
    roost_unanswered: ['count==0'],
    roost_missing: ['count==0'],
  },
  summaryTrendStats: ['count', 'med', 'p(90)', 'p(99)', 'max'],
};

// Read while the script is loaded: k6 opens files then only.
const seeded = __ENV.TOKENS ? JSON.parse(open(__ENV.TOKENS)) : null;

/** [{user_id, token, direct}], one for each virtual user, two in a row being a pair. */
export function prepare() {
  if (VUS % 2 !== 0) exec.test.abort('users write to each other by pairs: VUS must be even');
  if (seeded) {
    const paired = seeded.filter((user) => user.direct);
    if (paired.length < VUS) {
      exec.test.abort(`${VUS} virtual users need as many tokens of seeded pairs, not ${paired.length}`);
    }
    return paired.slice(0, VUS);
  }
  const users = [];
  for (let number = 0; number < VUS; number += 1) {
    const name = `k6-${Date.now()}-${number}`;
    const account = post('/v1/accounts', { name, password: 'a long password' }, null, 201);
    users.push({ user_id: account.user_id, token: account.access_token });
  }
  for (let number = 0; number + 1 < VUS; number += 2) {
    const body = { client_msg_id: crypto.randomUUID(), kind: 'direct', members: [users[number + 1].user_id] };
    const made = post('/v1/conversations', body, users[number].token, 201);
    users[number].direct = made.conversation_id;
    users[number + 1].direct = made.conversation_id;
  }
  return users.filter((user) => user.direct);
}

/** The user of this virtual user. */
export function own(users) {
  return users[(exec.vu.idInTest - 1) % users.length];
}

function post(path, body, token, wanted) {
  const headers = { 'Content-Type': 'application/json' };
  if (token) headers.Authorization = `Bearer ${token}`;
  const answer = http.post(BASE + path, JSON.stringify(body), { headers });
  if (answer.status !== wanted) {
    exec.test.abort(`${path}: ${answer.status} ${answer.body}`);
  }
  return answer.json();
}
