-- Give up leadership at once, so that a standby need not wait. KEYS[1] leader  ARGV[1] holder  ARGV[2] epoch
local leader = redis.call('HMGET', KEYS[1], 'holder', 'epoch')
if leader[1] == ARGV[1] and leader[2] == ARGV[2] then
  redis.call('HSET', KEYS[1], 'deadline', 0)
end
return 1
