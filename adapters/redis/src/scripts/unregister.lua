-- Removes exactly the entries given: another device under the same session id stays.
-- ARGV: prefix, incarnation, then user, session and device of each.
local prefix, incarnation = ARGV[1], ARGV[2]
local lease = prefix .. 'g:' .. incarnation
for i = 3, #ARGV, 3 do
  local key = prefix .. 'u:' .. ARGV[i]
  if redis.call('HGET', key, ARGV[i + 1]) == ARGV[i + 2] then
    redis.call('HDEL', key, ARGV[i + 1])
    redis.call('SREM', prefix .. 's:' .. incarnation, ARGV[i] .. ARGV[i + 1])
  end
end
if redis.call('EXISTS', lease) == 0 then
  return redis.error_reply('LEASELOST the lease has ended')
end
return redis.call('HINCRBY', lease, 'writes', 1)
