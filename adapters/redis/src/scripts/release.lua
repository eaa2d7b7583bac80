-- Ends a lease and drops what it held, a bounded number at a time. ARGV: prefix, incarnation.
-- Returns how many entries may be left.
local prefix, incarnation = ARGV[1], ARGV[2]
redis.call('DEL', prefix .. 'g:' .. incarnation)
local index = prefix .. 's:' .. incarnation
for _, entry in ipairs(redis.call('SPOP', index, 1000)) do
  redis.call('HDEL', prefix .. 'u:' .. string.sub(entry, 1, 16), string.sub(entry, 17, 32))
end
local left = redis.call('SCARD', index)
if left == 0 then
  redis.call('SREM', prefix .. 'gateways', incarnation)
end
return left
