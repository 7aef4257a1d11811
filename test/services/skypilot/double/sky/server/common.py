def get_server_url() -> str:
    return "http://127.0.0.1:46580"
