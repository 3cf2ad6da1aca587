-- wrk: uploads of 1 MiB.
wrk.method = "POST"
wrk.body = string.rep("u", 1048576)
