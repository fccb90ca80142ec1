#!lua flags=allow-oom
-- Removes whole days from the log, with all that belongs to them. Idempotency keys of those days expire by themselves.
-- A store that is out of memory does it too: it is what makes room.
--
-- KEYS: 1 the log (stream)  2 the counters (hash)  3 what waits (sorted set)
-- ARGV: 1 the first day to keep, in days since 1970
-- Gives the number of entries removed.
local first_kept = tonumber(ARGV[1])
local first_kept_ms = string.format('%d', first_kept * 86400000)

for _, field in ipairs(redis.call('HKEYS', KEYS[2])) do
    local day = string.match(field, '^%d+')
    if tonumber(day) < first_kept then
        redis.call('UNLINK', KEYS[1] .. ':records:' .. day)
        redis.call('UNLINK', KEYS[1] .. ':reviews:' .. day)
        redis.call('HDEL', KEYS[2], field) -- last: what is broken off here is found again by it
    end
end
redis.call('ZREMRANGEBYLEX', KEYS[3], '-', '(' .. string.rep('0', 18 - #first_kept_ms) .. first_kept_ms)
return redis.call('XTRIM', KEYS[1], 'MINID', first_kept_ms .. '-0')
