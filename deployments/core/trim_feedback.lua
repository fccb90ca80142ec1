#!lua
-- Removes whole days from the log, entries and counters together. Idempotency keys of those days expire by themselves.
--
-- KEYS: 1 the log (stream)  2 the counters (hash)
-- ARGV: 1 the first day to keep, in days since 1970
-- Gives the number of entries removed.
local first_kept = tonumber(ARGV[1])

for _, field in ipairs(redis.call('HKEYS', KEYS[2])) do
    if tonumber(string.match(field, '^%d+')) < first_kept then
        redis.call('HDEL', KEYS[2], field)
    end
end
return redis.call('XTRIM', KEYS[1], 'MINID', string.format('%d-0', first_kept * 86400000))
