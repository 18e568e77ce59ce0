-- End an attempt. ARGV: prefix, id, token, status, out key ("" none), retention s,
--       number of arrays, array keys..., field, value, ...
-- Answers 1, or 0 when the lease was lost: then the result is nobody's and is dropped.
local p, id, token, status, out = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local count = tonumber(ARGV[7])
for i = 8, 7 + count do redis.call('EXPIRE', ARGV[i], ARGV[6]) end
local job = p .. 'job:' .. id
local f = redis.call('HMGET', job, 'status', 'token', 'cancel', 'keep', 'tomb', 'ask', 'tenant', 'out')
if f[1] ~= 'running' or f[2] ~= token then
  local again = f[2] == token -- sent twice, because the reply was lost: what was said stands
  if out ~= '' and not (again and f[8] == out) then redis.call('DEL', out) end
  return again and 1 or 0
end
if f[3] == '1' and status ~= 'cancelled' then
  status = 'cancelled'
  if out ~= '' then redis.call('DEL', out) end
  out = ''
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for i = 8 + count, #ARGV - 1, 2 do redis.call('HSET', job, ARGV[i], ARGV[i + 1]) end
redis.call('HSET', job, 'status', status, 'finished', now, 'expires', now + f[4] * 1000, 'out', out)
redis.call('EXPIRE', job, f[4] + f[5])
redis.call('ZREM', p .. 'idx:running', id)
local ask = p .. 'ask:' .. f[7] .. ':' .. f[6]
if redis.call('GET', ask) == id then
  if status == 'succeeded' then redis.call('EXPIRE', ask, f[4]) else redis.call('DEL', ask) end
end
redis.call('HINCRBY', p .. 'counters', status, 1)
redis.call('PUBLISH', p .. 'job:' .. id, status)
return 1
