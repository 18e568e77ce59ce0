-- Sign a worker in ("1"), or renew its sign if it has one. ARGV: prefix, worker, warm, silent ms
-- Answers 1 when the worker is signed in, 0 when it is not yet warm.
local p, worker, warm, silent = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local key = p .. 'idx:workers'
redis.call('ZREMRANGEBYSCORE', key, '-inf', now - silent)
if warm ~= '1' and not redis.call('ZSCORE', key, worker) then return 0 end
redis.call('ZADD', key, now, worker)
return 1
