-- Begins a gateway's lease. ARGV: prefix, incarnation, address, ttl in ms, a random id for a Registry that has none.
local prefix, incarnation = ARGV[1], ARGV[2]
redis.call('SET', prefix .. 'life', ARGV[5], 'NX')
local lease = prefix .. 'g:' .. incarnation
redis.call('DEL', lease)
redis.call('HSET', lease, 'address', ARGV[3], 'writes', 0, 'complete', 0)
redis.call('PEXPIRE', lease, ARGV[4])
redis.call('SADD', prefix .. 'gateways', incarnation)
return { 0, redis.call('GET', prefix .. 'life') }
