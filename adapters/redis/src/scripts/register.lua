-- Registers sessions of one gateway and raises its counter in the same step.
-- ARGV: prefix, incarnation, then user, session and device of each.
local prefix, incarnation = ARGV[1], ARGV[2]
local lease = prefix .. 'g:' .. incarnation
if redis.call('EXISTS', lease) == 0 then
  return redis.error_reply('LEASELOST the lease has ended')
end
for i = 3, #ARGV, 3 do
  redis.call('HSET', prefix .. 'u:' .. ARGV[i], ARGV[i + 1], ARGV[i + 2])
  redis.call('SADD', prefix .. 's:' .. incarnation, ARGV[i] .. ARGV[i + 1])
end
return redis.call('HINCRBY', lease, 'writes', 1)
