#!lua
-- Writes one submission whole or not at all: the entry, its count and its idempotency key.
-- The flags of `#!lua` make the server refuse the script before its first line when it is read-only or out of memory.
--
-- KEYS: 1 the log (stream)  2 the counters (hash)  3 the submission's idempotency key (string)
-- ARGV: 1 digest of the record  2 days a record is kept  3 "1" if the correction is applied, else "0"
--       4 text key  5 scope  6 name of the counter  7 the record, JSON
-- Gives {"recorded" | "duplicate" | "conflict", id of the entry, its "1" or "0"}.
local DAY_MS = 86400000

local seen = redis.call('GET', KEYS[3])
if seen then
    local id, applied, digest = string.match(seen, '^(%S+) (%d) (%x+)$')
    return {digest == ARGV[1] and 'duplicate' or 'conflict', id, applied}
end

-- Scripts are not rolled back: whatever can fail has to fail before the first write. This fails if the key is no hash.
redis.call('HLEN', KEYS[2])

local id = redis.call('XADD', KEYS[1], '*', 'kind', 'feedback', 'text_key', ARGV[4], 'applied', ARGV[3],
    'scope', ARGV[5], 'key', KEYS[3], 'record', ARGV[7])
local day = math.floor(tonumber(string.match(id, '^%d+')) / DAY_MS)
redis.call('HINCRBY', KEYS[2], string.format('%d:', day) .. ARGV[6], 1)
local trimmed_at_ms = (day + tonumber(ARGV[2]) + 1) * DAY_MS
redis.call('SET', KEYS[3], id .. ' ' .. ARGV[3] .. ' ' .. ARGV[1], 'PXAT', string.format('%d', trimmed_at_ms))
return {'recorded', id, ARGV[3]}
