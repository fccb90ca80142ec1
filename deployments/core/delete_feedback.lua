#!lua flags=allow-oom
-- Removes a record with all that tells of it, but an entry that says so. A store that is out of memory does it too.
--
-- KEYS: 1 the log (stream)  2 the counters (hash)  3 what waits (sorted set)  4 the records of its day (hash)
--       5 the reviews of its day (hash)
-- ARGV: 1 id of the record  2 the same, sortable  3 its day  4 by whom
-- Gives 1, or 0 if there is no such record.
local function entry_of(id)
    local found = redis.call('XRANGE', KEYS[1], id, id)[1]
    local entry = {}
    for i = 1, found and #found[2] or 0, 2 do
        entry[found[2][i]] = found[2][i + 1]
    end
    return entry
end

local entry = entry_of(ARGV[1])
if entry.kind ~= 'feedback' then
    return 0
end
local approval = string.match(redis.call('HGET', KEYS[5], ARGV[1]) or '', '^approved (.+)$')
local approved_by = approval and entry_of(approval).by or ''
-- Scripts are not rolled back, and while a cluster moves the slot this key may be on another node than the others: the
-- server refuses it then, and has to before the first write.
local keyed = redis.call('GET', entry.key)

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
if keyed and string.sub(keyed, 1, #ARGV[1] + 1) == ARGV[1] .. ' ' then -- else it expired, and perhaps names another
    redis.call('SET', entry.key, 'gone', 'KEEPTTL')
end
redis.call('XADD', KEYS[1], '*', 'kind', 'deletion', 'of', ARGV[1], 'by', ARGV[4], 'key', entry.key,
    'submitted_by', entry.by or '', 'approved_by', approved_by)
return 1
