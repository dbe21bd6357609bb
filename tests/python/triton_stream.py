"""Sends requests on a stream until the server ends it; prints each answer, and why the stream ended.

Answers must arrive in the order of the requests. Argument: HOST:PORT.
"""

import queue
import sys

import numpy as np
import tritonclient.grpc as triton

client = triton.InferenceServerClient(sys.argv[1])
answers = queue.Queue()
client.start_stream(lambda result, error: answers.put((result, error)))
images = triton.InferInput("images", [1, 224, 224, 3], "UINT8")
images.set_data_from_numpy(np.zeros((1, 224, 224, 3), np.uint8))
sent = answered = 0
while True:
    try:
        while sent < answered + 8:
            client.async_stream_infer("resnet18-demo_tensor", [images], request_id=str(sent))
            sent += 1
    except triton.InferenceServerException:
        # The stream has ended; the reason follows the last answer.
        sent = float("inf")
    result, error = answers.get(timeout=30)
    if error is not None:
        break
    assert result.get_response().id == str(answered), (result.get_response().id, answered)
    answered += 1
    print("answered", answered, flush=True)
print("ended", error.status(), error.message(), flush=True)
try:
    client.infer("resnet18-demo_tensor", [images])
except triton.InferenceServerException as error:
    print("then", error.status(), flush=True)
# If the interpreter closes the client at its end, it sometimes waits for a thread that has ended.
client.close()
