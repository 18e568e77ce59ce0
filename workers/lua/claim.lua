-- Take a job for one attempt. ARGV: prefix, id, token, lease ms, worker
-- Answers {verdict, attempt, fields...}: claimed | busy | done | gone
local p, id, token, lease, worker = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local job = p .. 'job:' .. id
local f = redis.call('HMGET', job, 'status', 'attempt')
if not f[1] then return {'gone'} end
-- also when its lease has lapsed: that is the reaper's to judge, who counts attempts
if f[1] == 'running' then return {'busy'} end
if f[1] ~= 'queued' then return {'done'} end
local attempt = tonumber(f[2]) + 1
redis.call('HSET', job, 'status', 'running', 'token', token, 'lease', now + lease,
  'attempt', attempt, 'started', now, 'worker', worker)
redis.call('ZREM', p .. 'idx:queued', id)
redis.call('ZADD', p .. 'idx:running', now + lease, id)
redis.call('PUBLISH', p .. 'job:' .. id, 'running')
return {'claimed', attempt, redis.call('HMGET', job, 'routine', 'kind', 'request', 'created', 'started', 'tenant')}
