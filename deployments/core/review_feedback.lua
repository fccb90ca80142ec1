#!lua
-- Decides once what becomes of a correction that waits, and says so in the log.
--
-- KEYS: 1 the log (stream)  2 what waits (sorted set)  3 the reviews of the record's day (hash)
-- ARGV: 1 id of the record  2 the same, sortable  3 "approved" or "rejected"  4 by whom
--       5 until when it may be approved, seconds since 1970: later the correction would outlive its record
-- Gives {"done" | "again" | "decided" | "not pending" | "too late" | "unknown", what it is now}.
local found = redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1])[1]
if not found then
    return {'unknown', ''}
end
local entry = {}
for i = 1, #found[2], 2 do
    entry[found[2][i]] = found[2][i + 1]
end
if entry.kind ~= 'feedback' then
    return {'unknown', ''}
end

local before = redis.call('HGET', KEYS[3], ARGV[1])
if before then
    local verdict = string.match(before, '^%a+')
    return {verdict == ARGV[3] and 'again' or 'decided', verdict}
end
if entry.state ~= 'pending' then
    return {'not pending', entry.state}
end

if ARGV[3] == 'approved' then
    if tonumber(redis.call('TIME')[1]) > tonumber(ARGV[5]) then
        return {'too late', entry.state}
    end
    redis.call('ZREM', KEYS[2], ARGV[2])
    local id = redis.call('XADD', KEYS[1], '*', 'kind', 'approval', 'of', ARGV[1], 'by', ARGV[4],
        'text_key', entry.text_key, 'correction', entry.correction)
    redis.call('HSET', KEYS[3], ARGV[1], 'approved ' .. id)
else
    redis.call('ZREM', KEYS[2], ARGV[2])
    redis.call('HSET', KEYS[3], ARGV[1], 'rejected')
    redis.call('XADD', KEYS[1], '*', 'kind', 'rejection', 'of', ARGV[1], 'by', ARGV[4])
end
return {'done', ARGV[3]}
