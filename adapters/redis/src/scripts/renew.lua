-- Extends a lease; sweeps a few entries of gateways whose lease has ended.
-- ARGV: prefix, incarnation, address, ttl in ms, a random id for a Registry that has none, the life the gateway knows.
local prefix, incarnation = ARGV[1], ARGV[2]
redis.call('SET', prefix .. 'life', ARGV[5], 'NX')
local life = redis.call('GET', prefix .. 'life')
local lease = prefix .. 'g:' .. incarnation
if redis.call('EXISTS', lease) == 0 then
  if life == ARGV[6] then
    return redis.error_reply('LEASELOST the lease has ended')
  end
  redis.call('HSET', lease, 'address', ARGV[3], 'writes', 0, 'complete', 0)
  redis.call('SADD', prefix .. 'gateways', incarnation)
end
redis.call('PEXPIRE', lease, ARGV[4])
for _, other in ipairs(redis.call('SMEMBERS', prefix .. 'gateways')) do
  if redis.call('EXISTS', prefix .. 'g:' .. other) == 0 then
    local index = prefix .. 's:' .. other
    for _, entry in ipairs(redis.call('SPOP', index, 500)) do
      redis.call('HDEL', prefix .. 'u:' .. string.sub(entry, 1, 16), string.sub(entry, 17, 32))
    end
    if redis.call('EXISTS', index) == 0 then
      redis.call('SREM', prefix .. 'gateways', other)
    end
  end
end
return { tonumber(redis.call('HGET', lease, 'writes')), life }
