"""The coefficients of `ranvier.ops.costs`, in microseconds, as measured on one machine of each kind."""

SHIPPED = {
    "cpu": {
        "gather": {
            "sparse": {"call": 20.0, "entries": 1e-4, "columns": 2e-4},
            "float32": {"call": 20.0, "product": 1e-5, "rows": 5e-4, "matrix": 2e-4},
            "bfloat16": {"call": 20.0, "product": 2e-6, "rows": 5e-4, "matrix": 4e-4},
        },
        "scatter": {
            "sparse": {"call": 20.0, "entries": 1e-4, "matrix": 2e-4},
            "float32": {"call": 20.0, "product": 1e-5, "rows": 5e-4, "columns": 2e-4},
            "bfloat16": {"call": 20.0, "product": 2e-6, "rows": 5e-4, "columns": 4e-4},
        },
        "dots": {
            "sparse": {"call": 20.0, "entries": 1e-4, "slots": 1e-4},
            "float32": {"call": 20.0, "product": 1e-5, "rows": 5e-4, "matrix": 2e-4},
            "bfloat16": {"call": 20.0, "product": 2e-6, "rows": 5e-4, "matrix": 4e-4},
        },
    },
    "gpu": {
        "gather": {
            "sparse": {"call": 5.0, "entries": 1e-6, "columns": 2e-6},
            "float32": {"call": 10.0, "product": 4e-8, "rows": 4e-6, "matrix": 2e-6},
            "split": {"call": 30.0, "product": 8e-9, "rows": 4e-6, "matrix": 4e-6},
            "tf32": {"call": 10.0, "product": 6e-9, "rows": 4e-6, "matrix": 2e-6},
            "bfloat16": {"call": 10.0, "product": 3e-9, "rows": 2e-6, "matrix": 3e-6},
        },
        "scatter": {
            "sparse": {"call": 20.0, "entries": 2e-6, "matrix": 2e-6},
            "float32": {"call": 10.0, "product": 4e-8, "rows": 4e-6, "columns": 2e-6},
            "split": {"call": 30.0, "product": 8e-9, "rows": 4e-6, "columns": 4e-6},
            "tf32": {"call": 10.0, "product": 6e-9, "rows": 4e-6, "columns": 2e-6},
            "bfloat16": {"call": 10.0, "product": 3e-9, "rows": 2e-6, "columns": 3e-6},
        },
        "dots": {
            "sparse": {"call": 5.0, "entries": 1e-6, "slots": 1e-6},
            "float32": {"call": 10.0, "product": 4e-8, "rows": 4e-6, "matrix": 2e-6},
            "split": {"call": 30.0, "product": 1.6e-8, "rows": 4e-6, "matrix": 4e-6},
            "tf32": {"call": 10.0, "product": 6e-9, "rows": 4e-6, "matrix": 2e-6},
            "bfloat16": {"call": 10.0, "product": 3e-9, "rows": 2e-6, "matrix": 3e-6},
        },
    },
}
