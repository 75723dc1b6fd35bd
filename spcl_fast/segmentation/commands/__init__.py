"""Commands that run the stages many times: demo, reproduce, audit."""
