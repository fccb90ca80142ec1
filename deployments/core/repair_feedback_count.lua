#!lua flags=allow-oom
-- Puts a counter right, unless it was counted meanwhile.
--
-- KEYS: 1 the counters (hash)
-- ARGV: 1 the counter  2 its value when the log was counted  3 what it should have been then
-- Gives 1 if it is right now.
if tonumber(redis.call('HGET', KEYS[1], ARGV[1]) or 0) ~= tonumber(ARGV[2]) then
    return 0
end
if tonumber(ARGV[3]) == 0 then
    redis.call('HDEL', KEYS[1], ARGV[1])
else
    redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
end
return 1
