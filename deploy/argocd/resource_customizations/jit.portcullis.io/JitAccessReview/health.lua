-- Does a JitAccessReview count?
--   Healthy      it counts
--   Degraded     it does not, and the message says why
--   Progressing  not looked at yet
local status = obj.status or {}
if status.observedGeneration ~= obj.metadata.generation or status.counted == nil then
  return {status = "Progressing", message = "the controller has not looked at it yet"}
end
if status.counted then
  return {status = "Healthy", message = status.reason or ""}
end
return {status = "Degraded", message = status.reason or ""}
