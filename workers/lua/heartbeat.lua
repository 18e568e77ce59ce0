-- Extend a lease and store progress. ARGV: prefix, id, token, lease ms, progress ("" none)
-- Answers ok | cancel | lost
local p, id, token, lease, progress = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5]
local job = p .. 'job:' .. id
local f = redis.call('HMGET', job, 'status', 'token', 'cancel')
if f[1] ~= 'running' or f[2] ~= token then return 'lost' end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('HSET', job, 'lease', now + lease)
redis.call('ZADD', p .. 'idx:running', now + lease, id)
if progress ~= '' then
  redis.call('HSET', job, 'progress', progress)
  redis.call('PUBLISH', p .. 'job:' .. id, 'progress')
end
if f[3] == '1' then return 'cancel' end
return 'ok'
