-- Notes that a gateway has registered everything in this life of the Registry. ARGV: prefix, incarnation, life.
local prefix = ARGV[1]
local lease = prefix .. 'g:' .. ARGV[2]
if redis.call('EXISTS', lease) == 0 then
  return redis.error_reply('LEASELOST the lease has ended')
end
if redis.call('GET', prefix .. 'life') == ARGV[3] then
  redis.call('HSET', lease, 'complete', 1)
end
return 1
