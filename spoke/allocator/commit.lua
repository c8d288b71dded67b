-- The one atomic commit of a batch: all of it or none. An allocator that was replaced cannot write.
--
-- KEYS[1] leader  KEYS[2] events  KEYS[3] leases  KEYS[4...] the keys that the commands name by number
-- ARGV[1] holder  ARGV[2] epoch  ARGV[3] leadership, ms  ARGV[4] request cursor  ARGV[5] last event id expected
-- ARGV[6] commands, msgpack: a list of {command, number of its key, arguments...}
--   the command LEASE is our own: grant a lease from the server's present time (holder, ms)
-- ARGV[7] 1: look for leases that have run out
-- Returns the server's time in ms, then their holders.
local leader = redis.call('HMGET', KEYS[1], 'holder', 'epoch')
if leader[1] ~= ARGV[1] or leader[2] ~= ARGV[2] then
  return redis.error_reply('FENCED held by ' .. (leader[1] or 'nobody') .. ' in epoch ' .. (leader[2] or '0'))
end
local newest = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)
local last = newest[1] and newest[1][1] or '0-0'
if last ~= ARGV[5] then
  return redis.error_reply('DIVERGED the log ends at ' .. last .. ', not at ' .. ARGV[5])
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('HSET', KEYS[1], 'deadline', now + ARGV[3], 'cursor', ARGV[4])
local call, keys = redis.call, KEYS
for _, command in ipairs(cmsgpack.unpack(ARGV[6])) do
  local name, key = command[1], keys[command[2]]
  if name == 'LEASE' then
    call('ZADD', key, now + command[4], command[3])
  else
    call(name, key, unpack(command, 3))
  end
end
if ARGV[7] ~= '1' then
  return {now}
end
local expired = redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', '(' .. now, 'LIMIT', 0, 100)
table.insert(expired, 1, now)
return expired
