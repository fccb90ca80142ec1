#!lua flags=allow-oom
-- Removes a record with all that tells of it, but an entry that says so. A store that is out of memory does it too.
--
-- KEYS: 1 the log (stream)  2 the counters (hash)  3 what waits (sorted set)  4 the records of its day (hash)
--       5 the reviews of its day (hash)
-- ARGV: 1 id of the record  2 the same, sortable  3 its day  4 by whom
-- Gives 1, or 0 if there is no such record.
local found = redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1])[1]
if not found then
    return 0
end
local entry = {}
for i = 1, #found[2], 2 do
    entry[found[2][i]] = found[2][i + 1]
end
if entry.kind ~= 'feedback' then
    return 0
end

local approval = string.match(redis.call('HGET', KEYS[5], ARGV[1]) or '', '^approved (.+)$')
if approval then
    redis.call('XDEL', KEYS[1], approval)
end
redis.call('ZREM', KEYS[3], ARGV[2])
redis.call('HDEL', KEYS[5], ARGV[1])
redis.call('HDEL', KEYS[4], ARGV[1])
redis.call('XDEL', KEYS[1], ARGV[1])
local counter = ARGV[3] .. ':' .. entry.counter
if redis.call('HINCRBY', KEYS[2], counter, -1) == 0 then
    redis.call('HDEL', KEYS[2], counter)
end
local keyed = redis.call('GET', entry.key)
if keyed and string.sub(keyed, 1, #ARGV[1] + 1) == ARGV[1] .. ' ' then -- else it expired, and perhaps names another
    redis.call('SET', entry.key, 'gone', 'KEEPTTL')
end
redis.call('XADD', KEYS[1], '*', 'kind', 'deletion', 'of', ARGV[1], 'by', ARGV[4], 'key', entry.key)
return 1
