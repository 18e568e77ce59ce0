-- Cancel a live job, or forget an ended one. ARGV: prefix, id, tenant
-- Answers gone | cancelled (it was queued) | cancelling (a worker has it) | forgotten
local p, id, tenant = ARGV[1], ARGV[2], ARGV[3]
local job = p .. 'job:' .. id
local f = redis.call('HMGET', job, 'status', 'tenant', 'keep', 'tomb', 'ask', 'out')
if not f[1] or f[2] ~= tenant then return 'gone' end
local ask = p .. 'ask:' .. tenant .. ':' .. f[5]
if f[1] == 'running' then
  redis.call('HSET', job, 'cancel', '1')
  return 'cancelling'
end
if redis.call('GET', ask) == id then redis.call('DEL', ask) end
if f[1] == 'queued' then
  local time = redis.call('TIME')
  local now = time[1] * 1000 + math.floor(time[2] / 1000)
  redis.call('HSET', job, 'cancel', '1', 'status', 'cancelled', 'finished', now,
    'expires', now + f[3] * 1000)
  redis.call('EXPIRE', job, f[3] + f[4])
  redis.call('ZREM', p .. 'idx:queued', id)
  redis.call('HINCRBY', p .. 'counters', 'cancelled', 1)
  redis.call('PUBLISH', p .. 'job:' .. id, 'cancelled')
  return 'cancelled'
end
redis.call('DEL', job)
if f[6] and f[6] ~= '' then redis.call('DEL', f[6]) end
redis.call('ZREM', p .. 'idx:tenant:' .. tenant, id)
return 'forgotten'
