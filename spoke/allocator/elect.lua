-- Become the leader if there is none, or if its time has run out. Every election raises the epoch, also that of the
-- holder itself, so that a commit still under way on an old connection cannot land.
--
-- KEYS[1] leader  ARGV[1] holder  ARGV[2] leadership, ms  ARGV[3] its release  ARGV[4] the protocol that it speaks
-- Returns {epoch, cursor, now} if elected; {0, ms that the present leader has left, its name} if not.
local leader = redis.call('HMGET', KEYS[1], 'holder', 'deadline', 'epoch', 'cursor')
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local deadline = tonumber(leader[2] or 0)
if leader[1] and leader[1] ~= ARGV[1] and deadline >= now then
  return {0, tostring(deadline - now), leader[1]}
end
local epoch = tonumber(leader[3] or 0) + 1
redis.call('HSET', KEYS[1], 'holder', ARGV[1], 'epoch', epoch, 'deadline', now + ARGV[2], 'release', ARGV[3],
  'protocol', ARGV[4])
return {epoch, leader[4] or '0-0', tostring(now)}
