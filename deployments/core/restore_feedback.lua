#!lua
-- Writes entries of a backup with all that belongs to them, after the entry that the log has to end with.
--
-- KEYS: 1 the log (stream)  2 the counters (hash)  3 what waits (sorted set)
-- ARGV: 1 id of the log's last entry, 0-0 of an empty one; then of each entry, in order:
--       1 its id  2 id of the record it speaks of  3 the same, sortable  4 that record's day  5 the record, JSON
--       6 value of the idempotency key, or ""  7 when that expires, ms  8 number of names and values  … these
-- Gives the id of the log's last entry now; if that is not the last one given, another wrote and this did nothing.
local newest = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
local last = newest and newest[1] or '0-0'
if last ~= ARGV[1] then
    return last
end

local i = 2
while i <= #ARGV do
    local id, of, sortable, day, record, value, expires_at_ms, count = unpack(ARGV, i, i + 7)
    local fields = {unpack(ARGV, i + 8, i + 7 + count)}
    i = i + 8 + count
    local entry = {}
    for n = 1, #fields, 2 do
        entry[fields[n]] = fields[n + 1]
    end

    redis.call('XADD', KEYS[1], id, unpack(fields))
    if value ~= '' then
        redis.call('SET', entry.key, value, 'PXAT', expires_at_ms)
    end
    if entry.kind == 'feedback' then
        redis.call('HSET', KEYS[1] .. ':records:' .. day, id, record)
        redis.call('HINCRBY', KEYS[2], day .. ':' .. entry.counter, 1)
        if entry.state == 'pending' then
            redis.call('ZADD', KEYS[3], 0, sortable)
        end
    elseif entry.kind == 'approval' or entry.kind == 'rejection' then
        if redis.call('HEXISTS', KEYS[1] .. ':records:' .. day, of) == 1 then -- else it was deleted, or is too old
            redis.call('ZREM', KEYS[3], sortable)
            local review = entry.kind == 'approval' and 'approved ' .. id or 'rejected'
            redis.call('HSET', KEYS[1] .. ':reviews:' .. day, of, review)
        end
    end
    last = id
end
return last
