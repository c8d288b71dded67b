-- Begin the inbox anew, once all that stands in it is decided. Somebody has written an entry into it whose id lies so far ahead
-- that the server may soon have none left for those of others, or has none left already.
--
-- KEYS[1] leader  KEYS[2] requests   ARGV[1] holder  ARGV[2] epoch  ARGV[3] request cursor    returns 1 if it was done
local leader = redis.call('HMGET', KEYS[1], 'holder', 'epoch', 'cursor')
if leader[1] ~= ARGV[1] or leader[2] ~= ARGV[2] or leader[3] ~= ARGV[3] then
  return 0
end
local newest = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)
if newest[1] and newest[1][1] ~= ARGV[3] then
  return 0
end
redis.call('DEL', KEYS[2])
redis.call('HSET', KEYS[1], 'cursor', '0-0')
return 1
