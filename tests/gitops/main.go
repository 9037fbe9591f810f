// The judges of GitOps tools, for tests: what Flux and what Argo CD would say of an object.
//
//	judge kstatus            the library that Flux judges with
//	judge health SCRIPT...   Argo CD's health scripts: the one named after the object's kind, SCRIPT/KIND/health.lua
//
// Objects come as JSON on standard input, one after the other; one line of JSON answers each:
// {"status": ..., "message": ...}.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/fluxcd/cli-utils/pkg/kstatus/status"
	lua "github.com/yuin/gopher-lua"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	luajson "layeh.com/gopher-json"
)

type verdict struct {
	Status  string `json:"status"`
	Message string `json:"message,omitempty"`
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "judge:", err)
		os.Exit(1)
	}
}

func run(arguments []string) error {
	var judge func(*unstructured.Unstructured) (verdict, error)
	switch {
	case len(arguments) == 1 && arguments[0] == "kstatus":
		judge = kstatus
	case len(arguments) == 2 && arguments[0] == "health":
		judge = func(object *unstructured.Unstructured) (verdict, error) {
			script, err := os.ReadFile(filepath.Join(arguments[1], object.GetKind(), "health.lua"))
			if err != nil {
				return verdict{}, err
			}
			return health(object, string(script))
		}
	default:
		return errors.New("usage: judge kstatus | judge health FOLDER")
	}
	input := json.NewDecoder(os.Stdin)
	output := json.NewEncoder(os.Stdout)
	for {
		// As the clients of the API server read: whole numbers as int64.
		var raw json.RawMessage
		if err := input.Decode(&raw); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		object := &unstructured.Unstructured{}
		if err := object.UnmarshalJSON(raw); err != nil {
			return err
		}
		verdict, err := judge(object)
		if err != nil {
			return fmt.Errorf("%s %s: %w", object.GetKind(), object.GetName(), err)
		}
		if err := output.Encode(verdict); err != nil {
			return err
		}
	}
}

func kstatus(object *unstructured.Unstructured) (verdict, error) {
	result, err := status.Compute(object)
	if err != nil {
		return verdict{}, err
	}
	return verdict{Status: result.Status.String(), Message: result.Message}, nil
}

// The libraries that Argo CD opens for a script from argocd-cm: base, package, table and a harmless part of os. No
// string, no math, no io; and it may take a second.
func health(object *unstructured.Unstructured, script string) (verdict, error) {
	state := lua.NewState(lua.Options{SkipOpenLibs: true})
	defer state.Close()
	for _, library := range []struct {
		name string
		open lua.LGFunction
	}{
		{lua.LoadLibName, lua.OpenPackage},
		{lua.BaseLibName, lua.OpenBase},
		{lua.TabLibName, lua.OpenTable},
	} {
		call := lua.P{Fn: state.NewFunction(library.open), NRet: 0, Protect: true}
		if err := state.CallByParam(call, lua.LString(library.name)); err != nil {
			return verdict{}, err
		}
	}
	safe := map[string]lua.LGFunction{"time": func(state *lua.LState) int {
		state.Push(lua.LNumber(time.Now().Unix()))
		return 1
	}}
	state.SetGlobal("os", state.SetFuncs(state.NewTable(), safe))
	deadline, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	state.SetContext(deadline)
	state.SetGlobal("obj", value(state, object.Object))
	if err := state.DoString(script); err != nil {
		return verdict{}, err
	}
	answer := state.Get(-1)
	if answer.Type() != lua.LTTable {
		return verdict{}, fmt.Errorf("the script returns a %s, not a table", answer.Type())
	}
	text, err := luajson.Encode(answer)
	if err != nil {
		return verdict{}, err
	}
	var told verdict
	if err := json.Unmarshal(text, &told); err != nil {
		return verdict{}, err
	}
	known := []string{"Healthy", "Progressing", "Degraded", "Suspended", "Missing", "Unknown"}
	if !slices.Contains(known, told.Status) {
		return verdict{}, fmt.Errorf("%q is no health status of Argo CD", told.Status)
	}
	return told, nil
}

func value(state *lua.LState, from any) lua.LValue {
	switch from := from.(type) {
	case bool:
		return lua.LBool(from)
	case int64:
		return lua.LNumber(from)
	case float64:
		return lua.LNumber(from)
	case string:
		return lua.LString(from)
	case []any:
		table := state.CreateTable(len(from), 0)
		for _, item := range from {
			table.Append(value(state, item))
		}
		return table
	case map[string]any:
		table := state.CreateTable(0, len(from))
		for key, item := range from {
			table.RawSetString(key, value(state, item))
		}
		return table
	}
	return lua.LNil
}
