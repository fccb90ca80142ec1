#!lua
-- Writes one submission whole or not at all: the entry, its record, its count and its idempotency key.
-- The flags of `#!lua` make the server refuse the script before its first line when it is read-only or out of memory.
--
-- KEYS: 1 the log (stream)  2 the counters (hash)  3 the submission's idempotency key (string)  4 what waits (sorted set)
-- ARGV: 1 digest of the record  2 days a record is kept  3 state  4 text key  5 the correction, JSON  6 "1" if trusted
--       7 by whom  8 the counter  9 the record, JSON
-- Gives {"recorded" | "duplicate" | "conflict", id of the entry, its state} or {"gone"}.
local DAY_MS = 86400000
local DAY_S = 86400

local function records(day)
    return string.format('%s:records:%d', KEYS[1], day)
end

local seen = redis.call('GET', KEYS[3])
if seen == 'gone' then
    return {'gone'}
elseif seen then
    local id, state, digest = string.match(seen, '^(%S+) (%S+) (%x+)$')
    return {digest == ARGV[1] and 'duplicate' or 'conflict', id, state}
end

-- Scripts are not rolled back: whatever can fail has to fail before the first write. These fail if a key is not of its type.
redis.call('HLEN', KEYS[2])
redis.call('ZCARD', KEYS[4])
redis.call('HLEN', records(math.floor(tonumber(redis.call('TIME')[1]) / DAY_S)))

local id = redis.call('XADD', KEYS[1], '*', 'kind', 'feedback', 'state', ARGV[3], 'text_key', ARGV[4], 'correction', ARGV[5],
    'trusted', ARGV[6], 'by', ARGV[7], 'key', KEYS[3], 'counter', ARGV[8])
local ms, number = string.match(id, '^(%d+)-(%d+)$')
local day = math.floor(tonumber(ms) / DAY_MS)
redis.call('HSET', records(day), id, ARGV[9])
redis.call('HINCRBY', KEYS[2], string.format('%d:', day) .. ARGV[8], 1)
if ARGV[3] == 'pending' then
    redis.call('ZADD', KEYS[4], 0, string.rep('0', 18 - #ms) .. ms .. '-' .. string.rep('0', 18 - #number) .. number)
end
-- A day longer than the record: days are trimmed some time after they end, and until then the key has to tell of it.
local expires_at_ms = (day + tonumber(ARGV[2]) + 2) * DAY_MS
redis.call('SET', KEYS[3], id .. ' ' .. ARGV[3] .. ' ' .. ARGV[1], 'PXAT', string.format('%d', expires_at_ms))
return {'recorded', id, ARGV[3]}
