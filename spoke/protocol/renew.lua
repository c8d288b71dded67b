-- Renew a lease, in the server's own time. A lease that has run out cannot be renewed: its holder is gone.
-- KEYS[1] leases   ARGV[1] holder   ARGV[2] lease, ms      returns 1 (renewed) or 0 (lost)
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local deadline = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not deadline or tonumber(deadline) < now then
  return 0
end
redis.call('ZADD', KEYS[1], now + tonumber(ARGV[2]), ARGV[1])
return 1
