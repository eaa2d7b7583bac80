-- One use of a rate limit in the GCRA form, by the Registry's own clock. ARGV: key, burst, interval in ms.
-- Returns 0, or the milliseconds to wait.
local key, burst, interval = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local due = tonumber(redis.call('GET', key) or now)
if due < now then due = now end
local wait = due + interval - burst * interval - now
if wait > 0 then
  return wait
end
redis.call('SET', key, due + interval, 'PX', due + interval - now + 1)
return 0
