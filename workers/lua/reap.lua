-- Put lost jobs back in the queue and repair lost messages. ARGV: prefix, reaper, lock ms, stale ms
-- Answers {re-queued, ended}; {-1, 0} when another reaper holds the lock.
local p = ARGV[1]
if not redis.call('SET', p .. 'reaper', ARGV[2], 'NX', 'PX', ARGV[3]) then return {-1, 0} end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local requeued, ended = 0, 0

local function finish(id, job, f, status, error)
  redis.call('HSET', job, 'status', status, 'finished', now, 'expires', now + f[4] * 1000,
    'token', '')
  if error then redis.call('HSET', job, 'error', error) end
  redis.call('EXPIRE', job, f[4] + f[5])
  local ask = p .. 'ask:' .. f[7] .. ':' .. f[6]
  if redis.call('GET', ask) == id then redis.call('DEL', ask) end
  redis.call('HINCRBY', p .. 'counters', status, 1)
  redis.call('PUBLISH', p .. 'job:' .. id, status)
  ended = ended + 1
end

for _, id in ipairs(redis.call('ZRANGEBYSCORE', p .. 'idx:running', '-inf', now, 'LIMIT', 0, 100)) do
  local job = p .. 'job:' .. id
  local f = redis.call('HMGET', job, 'attempt', 'max_attempts', 'cancel', 'keep', 'tomb', 'ask',
    'tenant', 'queue', 'message')
  redis.call('ZREM', p .. 'idx:running', id)
  if f[1] then
    if f[3] == '1' then
      finish(id, job, f, 'cancelled')
    elseif tonumber(f[1]) >= tonumber(f[2]) then
      finish(id, job, f, 'failed', cjson.encode({code = 'worker-lost', retry = true,
        detail = 'the worker process was lost ' .. f[1] .. ' times while it had this job; ' ..
          'it may need more memory than there is: try a smaller problem'}))
    else
      redis.call('HSET', job, 'status', 'queued', 'token', '')
      redis.call('HDEL', job, 'progress')
      redis.call('ZADD', p .. 'idx:queued', now, id)
      redis.call('LPUSH', f[8], f[9])
      redis.call('HINCRBY', p .. 'counters', 'redelivered', 1)
      redis.call('PUBLISH', p .. 'job:' .. id, 'queued')
      requeued = requeued + 1
    end
  end
end

-- a job that waits although its queue is empty, or although a later one is next, has lost its message
local function overtaken(queue, id)
  local raw = redis.call('LINDEX', queue, -1)
  if not raw then return true end
  local read, message = pcall(cjson.decode, raw)
  local next_up = read and redis.call('ZSCORE', p .. 'idx:queued', message.headers.id)
  return next_up and tonumber(redis.call('ZSCORE', p .. 'idx:queued', id)) < tonumber(next_up)
end

for _, id in ipairs(redis.call('ZRANGEBYSCORE', p .. 'idx:queued', '-inf', now - ARGV[4], 'LIMIT', 0, 100)) do
  local f = redis.call('HMGET', p .. 'job:' .. id, 'queue', 'message')
  if not f[1] then
    redis.call('ZREM', p .. 'idx:queued', id)
  elseif overtaken(f[1], id) then
    redis.call('ZADD', p .. 'idx:queued', now, id)
    redis.call('LPUSH', f[1], f[2])
    requeued = requeued + 1
  end
end
return {requeued, ended}
