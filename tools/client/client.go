// Package client is where .ci/run generates a client from transferapi/openapi.yaml, to see that it
// compiles. What is generated is not kept; the import keeps the module that it needs in go.mod.
package client

import _ "github.com/oapi-codegen/runtime"
