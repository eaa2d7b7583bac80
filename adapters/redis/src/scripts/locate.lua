-- The sessions of some users, on gateways whose lease lives, and all those gateways. ARGV: prefix, then the users.
-- A session id begins with its gateway's incarnation (8 bytes, big-endian); leases are named by it in hexadecimal.
local prefix = ARGV[1]
local gateways, live = {}, {}
for _, incarnation in ipairs(redis.call('SMEMBERS', prefix .. 'gateways')) do
  local lease = redis.call('HMGET', prefix .. 'g:' .. incarnation, 'address', 'complete')
  if lease[1] then
    gateways[#gateways + 1] = { incarnation, lease[1], lease[2] }
    live[incarnation] = true
  end
end
local sessions = {}
for i = 2, #ARGV do
  local held = redis.call('HGETALL', prefix .. 'u:' .. ARGV[i])
  for j = 1, #held, 2 do
    local incarnation = string.gsub(string.sub(held[j], 1, 8), '.', function(byte)
      return string.format('%02x', string.byte(byte))
    end)
    if live[incarnation] then
      sessions[#sessions + 1] = ARGV[i] .. held[j] .. held[j + 1]
    end
  end
end
return { sessions, gateways }
